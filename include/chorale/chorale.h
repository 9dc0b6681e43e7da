// Everything a user of the library needs.
#pragma once

#include "chorale/attention.h"
#include "chorale/batch.h"
#include "chorale/implementation.h"
#include "chorale/kv_cache.h"
#include "chorale/mask.h"
#include "chorale/padding.h"
#include "chorale/parallel.h"
#include "chorale/problem.h"
#include "chorale/roles.h"
#include "chorale/status.h"
#include "chorale/tensor.h"
