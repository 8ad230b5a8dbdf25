// One function per command: declares its options on the parser and what runs when it is chosen. Results go to stdout,
// progress and notices to stderr; faults are thrown (Error) and become one line and an exit status in main.
#pragma once

namespace CLI {
class App;
}

namespace qat {

void add_train_command(CLI::App& app);
void add_quantize_command(CLI::App& app);
void add_export_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_compare_command(CLI::App& app);
void add_bench_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_logits_command(CLI::App& app);
void add_sample_command(CLI::App& app);
void add_init_command(CLI::App& app);
void add_recipe_command(CLI::App& app);

}  // namespace qat
