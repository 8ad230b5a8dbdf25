/* Preloaded into llama-perplexity by `judge`: it prints through a thread of its own and ends without waiting for it, so that on a
   busy machine its last lines, the results, are lost. Destructors of preloaded libraries run after main and before the threads die. */
#include <unistd.h>

__attribute__((destructor)) static void linger(void) { usleep(500000); }
