pub mod blocking; pub mod dir_view; pub mod view_store;
