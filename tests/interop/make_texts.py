"""Texts that tokenizers get wrong, for tokenizer.sh. usage: make_texts.py OUT FILE...  (writes OUT/NN.txt; FILEs are cut to 20 kB)"""
import pathlib
import sys

TRICKY = [
    "Hello, world",
    " one leading space",
    "   three, and  doubled   spaces   inside, one trailing ",
    "line\nline\n\nparagraph\n\n\n\nfour newlines \n space newline\t\ttabs\r\nCRLF\n",
    "caf\u00e9 na\u00efve \u00dcber stra\u00dfe \u6f22\u5b57\u304b\u306a \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \u2014 \u2026 \u00a0nbsp \u2028line separator \ufeffbom \u2581 the mark itself",
    "e\u0301 combining, \ufb01 ligature, \u1e9b\u0323 both, \u0130 dotted, \u01c5 titlecase",
    "0123456789 3.14159 1,000,000 12345678901234567890 \u0661\u0662\u0663 \u00b2\u00bd \u2167",
    "don't won't I'll WE'RE 'quoted' \"double\" it's'S x'\u017f",
    "a" * 300 + " " * 50 + "ab" * 200,
    "for (int i = 0; i < n; ++i) { s += x[i] * w[i]; }  // x >= 0 && y != 1 ??? !!! ((()))",
    "<s>begin</s> <bos>x<eos> <unk> <pad> <|begin_of_text|>a <|end_of_text|> <start_of_turn>user<end_of_turn> <mask><0x41> <|\"|>",
    "\x01\x02\x7f control \x1b[0m",
]

out = pathlib.Path(sys.argv[1])
texts = TRICKY + [pathlib.Path(f).read_bytes()[:20000].decode("utf-8", errors="ignore") for f in sys.argv[2:]]
for i, text in enumerate(texts):
    (out / f"{i:02}.txt").write_bytes(text.encode())
