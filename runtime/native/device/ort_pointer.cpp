#include "ort_pointer.h"

#include "../operators/ort.h"

namespace bita {

template <>
void OrtRelease<OrtEnv>::operator()(OrtEnv* object) const {
  ort().ReleaseEnv(object);
}
template <>
void OrtRelease<OrtSession>::operator()(OrtSession* object) const {
  ort().ReleaseSession(object);
}
template <>
void OrtRelease<OrtSessionOptions>::operator()(OrtSessionOptions* object) const {
  ort().ReleaseSessionOptions(object);
}
template <>
void OrtRelease<OrtRunOptions>::operator()(OrtRunOptions* object) const {
  ort().ReleaseRunOptions(object);
}
template <>
void OrtRelease<OrtIoBinding>::operator()(OrtIoBinding* object) const {
  ort().ReleaseIoBinding(object);
}
template <>
void OrtRelease<OrtValue>::operator()(OrtValue* object) const {
  ort().ReleaseValue(object);
}
template <>
void OrtRelease<OrtMemoryInfo>::operator()(OrtMemoryInfo* object) const {
  ort().ReleaseMemoryInfo(object);
}
template <>
void OrtRelease<OrtTypeInfo>::operator()(OrtTypeInfo* object) const {
  ort().ReleaseTypeInfo(object);
}
template <>
void OrtRelease<OrtModelMetadata>::operator()(OrtModelMetadata* object) const {
  ort().ReleaseModelMetadata(object);
}
template <>
void OrtRelease<OrtCUDAProviderOptionsV2>::operator()(OrtCUDAProviderOptionsV2* object) const {
  ort().ReleaseCUDAProviderOptions(object);
}

}  // namespace bita
