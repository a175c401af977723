"""What a run needs to go on after its machine has vanished."""
