"""What a trial costs: FLOPs, memory and seconds, predicted and calibrated."""
