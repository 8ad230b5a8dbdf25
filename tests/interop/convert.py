"""Runs llama.cpp's converter on many models in one process (its imports take longer than the conversions).

usage: convert.py DIR OUT.gguf TYPE [DIR OUT.gguf TYPE ...]
"""
import logging
import runpy
import sys

CONVERTER = "/usr/share/doc/llama.cpp-tools/scripts/convert_hf_to_gguf.py"

arguments = sys.argv[1:]
for directory, out, outtype in zip(arguments[0::3], arguments[1::3], arguments[2::3]):
    sys.argv = [CONVERTER, directory, "--outfile", out, "--outtype", outtype]
    runpy.run_path(CONVERTER, run_name="__main__")
    logging.disable(logging.INFO)  # the first conversion shows what is going on
