# QAT_KERNELS: the tables of kernels. One ISA per translation unit; only those files get its flags.
set(QAT_KERNELS isa.cc kernels.cc kernels_scalar.cc kernels_portable.cc)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(QAT_KERNELS_AVX2 kernels_avx2.cc channel_avx2.cc block_avx2.cc code_panel_avx2.cc vector_avx2.cc
      attention_avx2.cc)
  list(TRANSFORM QAT_KERNELS_AVX2 PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
  set_source_files_properties(${QAT_KERNELS_AVX2} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  list(APPEND QAT_KERNELS kernels_avxvnni.cc kernels_avx512.cc attention_avx512.cc)
  set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/kernels_avxvnni.cc PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;-mavxvnni")
  set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/kernels_avx512.cc ${CMAKE_CURRENT_LIST_DIR}/attention_avx512.cc PROPERTIES COMPILE_OPTIONS
    "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  list(APPEND QAT_KERNELS kernels_neon.cc kernels_i8mm.cc)
  set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/kernels_neon.cc PROPERTIES COMPILE_OPTIONS "-march=armv8.2-a+dotprod")
  set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/kernels_i8mm.cc PROPERTIES COMPILE_OPTIONS "-march=armv8.2-a+dotprod+i8mm")
endif()
list(TRANSFORM QAT_KERNELS PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
list(APPEND QAT_KERNELS ${QAT_KERNELS_AVX2})
