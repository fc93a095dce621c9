//! service_manager
