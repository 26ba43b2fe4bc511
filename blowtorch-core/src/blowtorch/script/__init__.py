"""What a training script has said."""
