"""Extensions that ship with the core, made with nothing but what outsiders may use."""
