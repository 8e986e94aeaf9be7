"""Train DRA models and measure what they find."""
