// Text that came from a file, a model or the command line, made harmless for where it goes. Bytes that are no UTF-8,
// and control characters, become U+FFFD (line breaks and tabs stay).
#pragma once

#include <string>

namespace qat {

std::string clean_utf8(const std::string& text);
std::string escape_html(const std::string& text);      // also inside quoted attributes and SVG
std::string escape_markdown(const std::string& text);  // one line; also inside tables
// At most `characters`, the middle of a longer text replaced by an ellipsis.
std::string shortened(const std::string& text, size_t characters);
size_t character_count(const std::string& utf8);

}  // namespace qat
