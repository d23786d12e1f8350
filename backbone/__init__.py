"""The quantized networks of dfs-env: layers, ResNets, their cost, their data and their files."""
