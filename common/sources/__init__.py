"""Where rows come from: one module per source, `registry` names them all."""
