"""GPU kernels, one language a folder, one operation a file, with the stems of csrc/."""
