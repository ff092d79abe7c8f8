"""What runs on the computer: model readers, compiler, driver, targets, commands."""
import os

# NumPy's OpenBLAS waits for its threads by spinning. The matrices here are small: on a machine
# that is also running a simulator, two threads were 25 times slower than one. Takes effect if NumPy
# has not been imported yet; a value that is set already is kept.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
