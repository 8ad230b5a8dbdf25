#include "format/error.h"
