"""Decoding strategies and the jitted generation loop."""
