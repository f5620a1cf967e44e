import pathlib as _p
_root=_p.Path(__file__).resolve().parent.parent
if not (_root/"invdiff"/"operators").is_dir() and (_root/"operators").is_dir():
    __path__.append(str(_root))
