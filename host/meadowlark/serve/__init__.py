"""A model over HTTP, for programs that know OpenAI's interface or llama-server's, and for people.

:mod:`.scheduler` owns the chip: one thread runs what is asked of it, from a queue with an end.
:mod:`.requests` reads what clients send, :mod:`.answers` makes what they get, :mod:`.app` has the
addresses, :mod:`.server` the socket. What clients get wrong is answered with one sentence.
"""
