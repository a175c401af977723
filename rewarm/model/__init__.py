"""The model: GPT-NeoX as Pythia uses it, its loss, its weights in and out of Hugging Face folders, its optimizer."""
