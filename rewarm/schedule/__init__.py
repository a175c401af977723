"""Learning-rate curves as pure functions of tokens, and the Composer algorithm that follows them."""
