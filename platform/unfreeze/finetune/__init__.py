"""One finetuning run: the loop, its evaluation and its checkpoints. No Ray."""
