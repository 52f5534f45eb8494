"""The four tasks: a checked request in, engine requests out, a result for each item.

Every module has the same way: `check` turns the wire request into its valid form,
`run` answers it as one batch, `stream` answers it piece by piece.
"""
