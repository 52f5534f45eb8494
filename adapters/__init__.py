"""What an adapter is: its manifest, prompt, store, probe, versions and aliases.

Imports neither torch nor vllm: the server and the trainer both depend on this
package, and neither depends on the other.
"""
