"""Text to tokens to one stream, in which the position decides the token.

`prepare.prepare` makes a corpus once, `shards.open_corpus` reads it in every trial.

Imports nothing, so that a plan can look for a prepared corpus where torch and tokenizers are not installed.
"""
