"""Carries days from Fonte to Alvo: the only room that knows both."""
