"""What edge and cloud have agreed on, and all of the edge that the cloud may import."""
