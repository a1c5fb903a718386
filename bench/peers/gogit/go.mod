module shardgit/bench/gogit

go 1.21
