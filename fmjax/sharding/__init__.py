"""Device meshes and the rules that place logical axes on them."""
