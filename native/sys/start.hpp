#pragma once

#include "sys/clock.hpp"

/// Where a program without libc begins, behind what start.cpp does. `stack`: argc, argv, the
/// environment and the auxiliary vector, as the kernel left them; `started`: of CLOCK_MONOTONIC,
/// when the program's first instruction ran.
extern "C" [[noreturn]] void casemate_main(const unsigned long* stack,
                                           const casemate::sys::Instant* started);
