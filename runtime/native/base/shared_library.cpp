#include "shared_library.h"

#include <dlfcn.h>

namespace bita {

namespace fs = std::filesystem;

fs::path packages_folder() {
  Dl_info own = {};
  if (!dladdr(reinterpret_cast<void*>(&packages_folder), &own) || !own.dli_fname) return {};
  std::error_code ignored;
  const fs::path folder = fs::weakly_canonical(own.dli_fname, ignored).parent_path();
  return folder.parent_path().parent_path().parent_path();
}

SharedLibrary open_first(const std::vector<std::string>& names) {
  SharedLibrary found;
  for (const std::string& name : names) {
    found.name = name;
    found.handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (found.handle) break;
    const char* reason = dlerror();
    found.reasons += (found.reasons.empty() ? "" : "; ") + std::string(reason ? reason : name);
  }
  return found;
}

}  // namespace bita
