// A stand-in of the tests: see micro_mutable_op_resolver.h.
#pragma once
void MicroPrintf(const char* format, ...) __attribute__((format(printf, 1, 2)));
