// A std::span look-alike for C++17 (delete when the project moves to C++20).
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "format/error.h"

namespace qat {

template <class T>
class Span {
 public:
  constexpr Span() = default;
  constexpr Span(T* data, size_t size) : data_(data), size_(size) {}
  // From any contiguous container with data() and size(): std::vector, std::array, std::string, Span<U>.
  template <class C, class = std::enable_if_t<std::is_convertible_v<decltype(std::declval<C&>().data()), T*>>>
  constexpr Span(C&& container)
      : data_(container.data()), size_(container.size()) {}  // NOLINT: implicit like std::span

  constexpr T* data() const { return data_; }
  constexpr size_t size() const { return size_; }
  constexpr bool empty() const { return size_ == 0; }
  constexpr T* begin() const { return data_; }
  constexpr T* end() const { return data_ + size_; }
  constexpr T& operator[](size_t i) const { return data_[i]; }
  Span subspan(size_t offset, size_t count) const {
    QAT_CHECK(offset <= size_ && count <= size_ - offset);
    return Span(data_ + offset, count);
  }
  Span subspan(size_t offset) const {
    QAT_CHECK(offset <= size_);
    return Span(data_ + offset, size_ - offset);
  }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace qat
