// Convert the options of the C interface to the library's own. All functions throw a Fault for an
// invalid value.
#pragma once

#include <cstddef>
#include <vector>

#include "../session/session.h"
#include "bita/bita.h"

namespace bita::api {

EngineSettings settings_of(const bita_engine_options* given);
TextSettings text_settings_of(const bita_session_options* given);
Options options_of(const bita_answer_options* given);
std::vector<ChatMessage> messages_of(const bita_message* messages, size_t count);

}  // namespace bita::api
