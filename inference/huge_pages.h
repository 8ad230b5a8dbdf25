// Memory for what is read and written again and again: in pages of megabytes where the system has them, whose addresses
// cost less to look up, and from a cache line's begin on, since a vector of 64 bytes that lies across two lines costs
// two loads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "format/file_io.h"

namespace qat {

// Of std::vector. Only whole huge pages inside what is allocated are asked for, so that none is larger than its
// content.
template <class T>
struct HugePageAllocator {
  using value_type = T;
  static constexpr size_t kHugePage = size_t{2} << 20;
  static constexpr std::align_val_t kLine{64};

  HugePageAllocator() = default;
  template <class U>
  HugePageAllocator(const HugePageAllocator<U>&) {}

  T* allocate(size_t count) {
    if (count > SIZE_MAX / sizeof(T)) throw std::bad_array_new_length();
    const size_t bytes = count * sizeof(T);
    if (bytes < kHugePage) return static_cast<T*>(::operator new(bytes, kLine));
    void* data = ::operator new (bytes, std::align_val_t{kHugePage});
    advise_huge_pages(data, bytes / kHugePage * kHugePage);
    return static_cast<T*>(data);
  }
  void deallocate(T* data, size_t count) {
    if (count * sizeof(T) < kHugePage) return ::operator delete(data, kLine);
    ::operator delete (data, std::align_val_t{kHugePage});
  }
  template <class U>
  bool operator==(const HugePageAllocator<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const HugePageAllocator<U>&) const {
    return false;
  }
};

template <class T>
using HugeVector = std::vector<T, HugePageAllocator<T>>;

}  // namespace qat
