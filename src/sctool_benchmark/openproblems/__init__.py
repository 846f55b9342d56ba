"""Label projection as Open Problems has it: its protocol on our data, and a component in its form.

``python -m sctool_benchmark.openproblems`` runs the protocol. ``script.py`` and
``config.vsh.yaml`` are a method of its task (https://github.com/openproblems-bio/
task_label_projection): copied to ``src/methods/sctool`` there they run as they are.
"""
