"""The C functions of bench/capi.cpp and bench/capi_gpu.cpp."""

import ctypes

import numpy


class CaseRequest(ctypes.Structure):
    """As bench/capi.h declares it."""
    _fields_ = [("query_heads", ctypes.c_int), ("kv_heads", ctypes.c_int), ("head_dim", ctypes.c_int),
                ("dtype", ctypes.c_char_p), ("mask", ctypes.c_char_p), ("score", ctypes.c_char_p),
                ("implementation", ctypes.c_char_p), ("device", ctypes.c_char_p), ("threads", ctypes.c_int), ("chunk", ctypes.c_int),
                ("documents", ctypes.c_void_p), ("document_count", ctypes.c_int64),
                ("slopes", ctypes.c_void_p), ("slope_count", ctypes.c_int64),
                ("sequences", ctypes.c_int), ("q_lens", ctypes.c_void_p), ("kv_lens", ctypes.c_void_p),
                ("page_size", ctypes.c_int), ("pages", ctypes.c_int64),
                ("block_table", ctypes.c_void_p), ("table_row", ctypes.c_int64)]


def request(implementation, device, heads, kv_heads, dim, dtype, mask, q_lens, kv_lens, score="", threads=0, chunk=0,
            documents=None, slopes=None, pages=None):
    """pages: dict(size, count, table [sequences, pages of a sequence]), or None for packed keys."""
    keep = []  # the structure holds addresses only

    def array(values, dtype):
        keep.append(numpy.ascontiguousarray(values, dtype=dtype))
        return keep[-1].ctypes.data

    made = CaseRequest(heads, kv_heads, dim, dtype.encode(), mask.encode(), score.encode(), implementation.encode(),
                       device.encode(), threads, chunk, sequences=len(q_lens),
                       q_lens=array(q_lens, numpy.int32), kv_lens=array(kv_lens, numpy.int32))
    if documents is not None:
        made.documents, made.document_count = array(documents, numpy.int32), len(documents)
    if slopes is not None:
        made.slopes, made.slope_count = array(slopes, numpy.float32), len(slopes)
    if pages is not None:
        made.page_size, made.pages = pages["size"], pages["count"]
        made.block_table, made.table_row = array(pages["table"], numpy.int32), pages["table"].shape[1]
    made.keep = keep
    return made


class Failure(SystemExit):
    """What the library refused, in its own sentence. It ends a program that does not catch it."""


class Chorale:
    def __init__(self, path):
        self.c = ctypes.CDLL(path)
        for name, result in (("error", ctypes.c_char_p), ("case", ctypes.c_void_p), ("fingerprint", ctypes.c_char_p),
                             ("device", ctypes.c_char_p), ("nvrtc", ctypes.c_char_p)):
            getattr(self.c, "chorale_" + name).restype = result

    def check(self, ok):
        if not ok:
            raise Failure("bench: " + self.c.chorale_error().decode())
        return ok

    def case(self, made):
        return ctypes.c_void_p(self.check(self.c.chorale_case(ctypes.byref(made))))

    def compile(self, made):
        """Seconds that the compiler took; 0 for kernels of the cache."""
        seconds = ctypes.c_double()
        self.check(self.c.chorale_compile(ctypes.byref(made), ctypes.byref(seconds)))
        return seconds.value

    def text(self, function, *arguments):
        return self.check(getattr(self.c, "chorale_" + function)(*arguments)).decode()
