// fastdiff._build_info: how the native library was built, readable without loading it.
#include <pybind11/pybind11.h>

#include "build_info.h"  // written by setup.py

PYBIND11_MODULE(_build_info, module) {
  module.def(
      "build_info",
      [] {
        pybind11::dict facts;
        facts["compiler"] = "C++ " __VERSION__;
        for (const auto& fact : kBuildInfo) facts[fact[0]] = fact[1];
        return facts;
      },
      "The facts of the build by name: compiler, build, cuda_version, cuda_architectures,\n"
      "git_revision, torch_target and torch_at_build; empty where a fact does not apply.");
}
