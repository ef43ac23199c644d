"""Operations: metrics, health, the HTTP port, the log, and the limits of the process."""
