"""Experiments: applications of the library, each a command of ``lightning-stable``; nothing else imports them."""
