"""The training loop, the stage that it trains, and the checkpoints between stages."""
