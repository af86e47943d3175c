"""Helper files for those who operate a deployment: certificates, keys, units, manifests."""
