"""The bundled small backbone and the text it was pre-trained on."""
