"""Starting jobs at once: one process per run imports everything, and starts each job as a copy of itself.

To start Python and to import torch takes three CPU seconds, and a training imports torch's compiler too. A run has dozens of
jobs. :mod:`ibsgl.warm.server` is the process that has imported everything. :mod:`ibsgl.warm.client` is the command ``ibsgl``:
it hands its arguments, environment and open files over and waits for the exit status.

A job gets a copy only if its environment is that of the server, so that it computes what it would compute otherwise. Wherever
this is not possible (on a cluster, on a GPU, in another environment, on another system than Linux), the job starts by itself.
"""

# The name of the server's socket, for the jobs of a run. The workflow sets it, except if it is OFF.
VARIABLE = "IBSGL_WARM"
OFF = "off"
# What the server answers if the job must start by itself.
REFUSED = b"refused\n"
