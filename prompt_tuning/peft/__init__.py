"""Parameter-efficient methods and the model that applies them."""
