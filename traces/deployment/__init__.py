"""Files that `ttscope advise -o` writes for a deployment, and what holds a run against them."""
