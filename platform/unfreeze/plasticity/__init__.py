"""How much each component turns a change of its input into a change of its output: the pre-pass."""
