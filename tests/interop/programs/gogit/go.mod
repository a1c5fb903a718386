module shardgit/interop/gogit

go 1.21
