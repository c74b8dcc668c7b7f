"""What type checkers must object to: a misspelt function and a misspelt option."""

import hhtld

hhtld.opne("model.hhtld")
hhtld.convert("model.safetensors", "model.hhtld", profle="gates")
