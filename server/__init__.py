"""One round after another: who is asked, how trunks become the next trunk, what is kept."""
